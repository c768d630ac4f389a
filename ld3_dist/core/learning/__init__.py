"""Learning a schedule: settings, parameters, the objective, and the procedures that move them."""
