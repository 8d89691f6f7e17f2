"""The `upnext` command."""
