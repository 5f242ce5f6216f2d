"""The client side: lanes that read requests from clients and send answers back."""
