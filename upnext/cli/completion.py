"""`upnext completion`: the scripts by which shells complete command lines."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from upnext.cli import output
from upnext.cli.options import flags, json_option


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete `upnext` and `upnextd`: commands, flags, tasks, slots, daemons."""
    found = get_completion_class(shell)
    assert found is not None
    scripts = [found(click.Command(name), {}, name, f"_{name.upper()}_COMPLETE") for name in ("upnext", "upnextd")]
    text = "\n".join(script.source_template % script.source_vars() for script in scripts)
    # click's fish script cuts a description at its first comma.
    text = text.replace('(string split "," $completion)', '(string split --max 1 "," $completion)')
    if flags().json:
        output.print_json({"shell": shell, "script": text})
    else:
        click.echo(text)
