"""For authors of sandbox providers: the conformance suite the built-in ones pass.

pytest --runra-provider my_package.provider:MyProvider [--runra-provider-config JSON] [--runra-image NAME]
"""
