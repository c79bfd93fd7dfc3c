"""What `sample_data.portraits` paints with."""
