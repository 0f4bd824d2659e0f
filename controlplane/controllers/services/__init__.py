"""Where the pods behind Services are: EndpointSlices, Endpoints, and addresses from outside."""
