"""The network that learns: loaded, sharded, packed, and what it says of tokens."""
