"""What the controller is trained in: tasks, live runs, the simulator, clocks and objectives."""
