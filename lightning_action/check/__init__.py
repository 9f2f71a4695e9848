"""`check`: a dry run of a configuration, without weights and without the devices that it asks for."""
