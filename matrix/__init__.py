"""Every patch against every published sglang: what is planned where, compared with what a person has reviewed."""
