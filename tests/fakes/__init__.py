"""Stand-ins that provoke faults and count calls; never a substitute for a component that runs here."""
