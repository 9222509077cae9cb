"""Whether the Hugging Face hub can be reached: asked once and briefly, where the libraries would retry for minutes."""

import urllib.error
import urllib.request

from neobert.errors import PipelineError

PROBE_SECONDS = 5.0


def probe_hub(what: str) -> None:
    """Ask the hub once whether it can be reached at all.

    Args:
        what: the key and value that need it, e.g. ``corpus.hub: 'owner/name'``.

    Raises:
        PipelineError: it cannot.
    """
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise PipelineError(
            f"{what} needs {constants.ENDPOINT}, which cannot be reached ({error}); "
            "connect, set HF_HUB_OFFLINE=1 to use the local cache, or name a local path"
        ) from error
