"""The version of a compiler that is not here: g++ is."""


def getVersion():
    return 13, 0
