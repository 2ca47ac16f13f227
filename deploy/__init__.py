"""Ways of running Fireside: on one machine with embedded servers, in containers, on a cluster."""
