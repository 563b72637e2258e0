"""The capacity study: how many random facts a method stores per trainable parameter."""
