"""What carries requests, and how bodies and transports are read and closed."""
