"""A group of commands that answers a typing error with the command that was probably meant."""

from __future__ import annotations

from difflib import get_close_matches

import click


class NearestGroup(click.Group):
    """A click group. An unknown name is refused with the nearest of its commands, or of those of its groups, where one is near."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; raises UsageError."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self._known(ctx)
            near = get_close_matches(args[0], known, 1)
            hint = f"; did you mean `{ctx.command_path} {known[near[0]]}`?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def _known(self, ctx: click.Context) -> dict[str, str]:
        """What can stand behind it by its last word: its commands, and those of its groups."""
        own = self.list_commands(ctx)
        groups = {name: group for name in own if isinstance(group := self.get_command(ctx, name), click.Group)}
        within = {inner: f"{name} {inner}" for name, group in groups.items() for inner in group.list_commands(ctx)}
        return within | {name: name for name in own}
