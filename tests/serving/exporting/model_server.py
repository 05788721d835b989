"""A small model of TensorFlow Serving's check of labels, and folders without models for it."""

from __future__ import annotations

from keras_ranking.serving.exporting import server_configs


class ModelServer:
    """What `ServerCore::ReloadConfig` does: labels are checked first, against the available versions; then versions are loaded.

    Args:
        folder: the served model.
        loads: whether a version that the policy wants becomes available.
    """

    def __init__(self, folder, loads=lambda version: True):
        self.folder, self._loads = folder, loads
        self.available, self.labels, self._policy = set(), {}, None

    def reload(self):
        """One poll of the config file; whether the config was accepted."""
        from google.protobuf import text_format
        from tensorflow_serving.config import model_server_config_pb2

        text = (self.folder / "tf_serving" / server_configs.MODELS).read_text()
        (config,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        for label, version in config.version_labels.items():
            # --allow_version_labels_for_unavailable_models is for new labels only.
            if version not in self.available and self.labels.get(label, version) != version:
                return False
            if version not in self.available and label in self.labels:
                return False
        self.labels, self._policy = dict(config.version_labels), config.model_version_policy
        self.poll_folder()
        return True

    def poll_folder(self):
        """One poll of the file system with the policy of the last accepted config."""
        found = {int(path.name) for path in self.folder.iterdir() if path.name.isdigit()}
        wanted = found if self._policy.WhichOneof("policy_choice") == "all" else found & set(self._policy.specific.versions)
        self.available = {version for version in wanted if version in self.available or self._loads(version)}

    def run(self, polls=3):
        accepted = [False]
        for _ in range(polls):
            self.poll_folder()
            accepted.append(self.reload())
        return accepted[-1]


def publish(folder, number, **settings):
    (folder / str(number)).mkdir(parents=True)
    (folder / "tf_serving").mkdir(exist_ok=True)
    server_configs.install(server_configs.stage(folder, server_configs.texts(folder, number, [], [1, 8], **settings)), folder)
