"""How the sample data is made: real photographs, painted portraits, odd file formats."""
