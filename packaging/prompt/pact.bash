# [pact c7 12m] before the prompt of bash, red in the last two minutes. It reads one small file, and starts no process.
# In a session of pact shell it shows your own open changes; elsewhere how many are open on this node.
# Source it from ~/.bashrc, or let /etc/profile.d/pact-prompt.sh do it.

__pact_prompt() {
  local state magnitude changes ends now left text color=''
  PACT_PS1=''
  { IFS=' ' read -r state magnitude changes ends < "${PACT_PROMPT:-/run/pact/state}"; } 2>/dev/null || return 0
  [[ $ends =~ ^[0-9]+$ && $changes =~ ^[a-z0-9.,-]+$ && $state =~ ^[a-z_]+$ ]] || return 0
  [[ $changes == - && $state != emergency && $state != blocked && $state != failed ]] && return 0
  text=$state
  [[ $changes != - && $state == drifted ]] && text=$changes
  [[ $changes != - && $state != drifted ]] && text="$state $changes"
  if (( ends > 0 )); then
    printf -v now '%(%s)T' -1
    left=$(( ends - now ))
    (( left < 0 )) && left=0
    if (( left <= 120 )); then color=31; else color=33; fi
    if (( left < 120 )); then text+=" ${left}s"
    elif (( left < 7200 )); then text+=" $(( left / 60 ))m"
    elif (( left < 172800 )); then text+=" $(( left / 3600 ))h"
    else text+=" $(( left / 86400 ))d"; fi
  fi
  # \001 and \002 say which bytes take no room, as \[ and \] do.
  if [[ -n $color ]]; then PACT_PS1=$'\001\e['"${color}m"$'\002'"[pact $text]"$'\001\e[0m\002 '
  else PACT_PS1="[pact $text] "; fi
}

if [[ $- == *i* ]]; then
  # After whatever stands there: it may want the exit code, which this leaves as it was.
  # With set -e a code that nobody asked about would end the shell.
  __pact_prompt_before() { local code=$?; __pact_prompt; [[ $- == *e* ]] || return $code; }
  # A shell in this one may have got one of both from it, and may not be allowed to change them.
  if [[ ${PROMPT_COMMAND[*]-} != *__pact_prompt* && ! ( ${PROMPT_COMMAND+x} && ${PROMPT_COMMAND@a} == *r* ) ]]; then
    PROMPT_COMMAND="__pact_prompt_before${PROMPT_COMMAND:+; $PROMPT_COMMAND}"
  fi
  if [[ ${PS1-} != *PACT_PS1* && ! ( ${PS1+x} && ${PS1@a} == *r* ) ]]; then
    PS1='${PACT_PS1-}'"${PS1-}"
  fi
fi
