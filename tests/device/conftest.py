from tests._sshd import sshd as sshd
from tests._tiny import bundle as bundle
from tests._tiny import libraries as libraries
