"""`python -m upnext` is `upnext`."""

from upnext.cli.main import main

main()
