"""Live events over WebSockets.

news             what there is to tell, read from the rows and the log of events
pace             when it is told: at once, and then so often at most
credentials      who somebody is, and still is
hub              one for each process: reads for all, tells each what is his
consumers        the WebSockets
"""
