from tests._tiny import bundle as bundle
from tests._tiny import libraries as libraries
