"""What a browser or a program asks for. What it does is done by the services below; here it gets its HTTP."""
