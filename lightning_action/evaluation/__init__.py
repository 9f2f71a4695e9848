"""Does the model obey?"""
