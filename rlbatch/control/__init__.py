"""The parts of a controller: decision engine, guard, configuration."""
