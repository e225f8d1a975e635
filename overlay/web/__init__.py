"""The state of the patches over HTTP: routes and metrics in sglang's own server, and a client for them."""
