"""Configs of installed plug-ins, for Hydra to find."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from fairpriv.config.plugins import ENTRY_POINTS, plugin_folders


class InstalledConfigs(SearchPathPlugin):
    """Adds the ``conf`` folders of installed plug-ins: see `fairpriv.config.plugins`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in plugin_folders():
            search_path.append(ENTRY_POINTS, f"file://{folder}")
