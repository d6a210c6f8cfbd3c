"""What moeplan answers: the estimate and search documents, and how an estimate is built from prices."""
