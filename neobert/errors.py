"""The one exception a user is meant to read."""


class PipelineError(Exception):
    """An input, a parameter or an environment that cannot work.

    The message names the dotted key or file and line, the value, the rule it breaks and the remedy. Stages print
    it without a traceback and exit with status 1; anything else that escapes a stage is a bug and keeps its
    traceback.
    """
