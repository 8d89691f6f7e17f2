"""The only code that speaks to Redis. Callers above it see Python values and the errors of `upnext.errors`."""
