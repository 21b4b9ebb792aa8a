# [pact c7 12m] before the prompt of zsh, red in the last two minutes. It reads one small file, and starts no process.
# In a session of pact shell it shows your own open changes; elsewhere how many are open on this node.
# Source it from ~/.zshrc.

zmodload zsh/datetime 2>/dev/null

__pact_prompt() {
  emulate -L zsh
  local state magnitude changes ends left text
  typeset -g PACT_PS1=''
  [[ -r ${PACT_PROMPT:-/run/pact/state} ]] || return 0
  IFS=' ' read -r state magnitude changes ends < "${PACT_PROMPT:-/run/pact/state}" 2>/dev/null || return 0
  [[ $ends == <-> && $changes != *[^a-z0-9.,-]* && $state != *[^a-z_]* ]] || return 0
  [[ $changes == - && $state != emergency && $state != blocked && $state != failed ]] && return 0
  text=$state
  [[ $changes != - && $state == drifted ]] && text=$changes
  [[ $changes != - && $state != drifted ]] && text="$state $changes"
  if (( ends > 0 )); then
    left=$(( ends - EPOCHSECONDS ))
    (( left < 0 )) && left=0
    if (( left < 120 )); then text+=" ${left}s"
    elif (( left < 7200 )); then text+=" $(( left / 60 ))m"
    elif (( left < 172800 )); then text+=" $(( left / 3600 ))h"
    else text+=" $(( left / 86400 ))d"; fi
    if (( left <= 120 )); then PACT_PS1="%F{red}[pact $text]%f "; else PACT_PS1="%F{yellow}[pact $text]%f "; fi
  else
    PACT_PS1="[pact $text] "
  fi
}

if [[ -o interactive ]]; then
  setopt prompt_subst
  autoload -Uz add-zsh-hook && add-zsh-hook precmd __pact_prompt
  # A shell in this one may have got it from this one, and may not be allowed to change it.
  if [[ $PS1 != *PACT_PS1* && ${(t)PS1} != *readonly* ]]; then
    PS1='${PACT_PS1-}'"$PS1"
  fi
fi
