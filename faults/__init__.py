"""Drills: a small real sweep under everything that can go wrong (`make faults`); the table is in docs/reliability.md."""
