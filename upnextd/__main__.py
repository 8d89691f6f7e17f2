"""`python -m upnextd` is `upnextd`."""

from upnextd.main import main

main()
