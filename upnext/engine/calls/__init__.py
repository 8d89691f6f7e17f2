"""One caller per Lua script: what goes in as Python values, what comes out. Nothing here talks to a socket."""
