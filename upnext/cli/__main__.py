"""`python -m upnext.cli` is `upnext`."""

from upnext.cli.main import main

main()
