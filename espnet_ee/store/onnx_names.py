"""What an exported model's folder and its parts are called."""

FOLDER, DESCRIPTION = "onnx", "model.yaml"
KINDS = ("fp32", "int8")
