"""What the server fills in when a user leaves it out."""
