"""Admission policies in CEL: what their expressions see (`expressions`), which apply to a request (`bindings`), and the
plugins that refuse (`validating`) and change (`mutating`)."""
