"""Stand-ins that provoke faults and count calls, never in the place of what runs here."""
