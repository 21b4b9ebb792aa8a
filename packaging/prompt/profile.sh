# The prompt of pact in interactive shells. Goes to /etc/profile.d as pact-prompt.sh.
if [ -n "${BASH_VERSION-}" ] && [ -r /usr/share/pact/prompt/pact.bash ]; then
  . /usr/share/pact/prompt/pact.bash
elif [ -n "${ZSH_VERSION-}" ] && [ -r /usr/share/pact/prompt/pact.zsh ]; then
  . /usr/share/pact/prompt/pact.zsh
fi
