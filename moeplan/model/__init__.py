"""What is trained: read a model, count its parameters, say what its forward pass costs."""

from moeplan.model.architecture import Architecture as Architecture
from moeplan.model.architecture import Layer as Layer
from moeplan.model.catalog import model_names as model_names
from moeplan.model.describe import describe as describe
from moeplan.model.details import ModelDetails as ModelDetails
from moeplan.model.reader import load_model as load_model
from moeplan.model.reader import load_model_config as load_model_config
