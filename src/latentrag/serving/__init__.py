"""The model over HTTP and the Model Context Protocol: requests in, batches through one model thread, JSON out."""
