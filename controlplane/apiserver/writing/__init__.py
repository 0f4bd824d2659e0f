"""CREATE, UPDATE, PATCH and DELETE: from a body to a stored object."""
