"""DataModules and the simulator."""
