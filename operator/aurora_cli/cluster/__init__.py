"""What the program asks the API server for, and the changes that it sends there."""
