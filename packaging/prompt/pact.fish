# [pact c7 12m] before the prompt of fish, red in the last two minutes. It reads one small file, and starts no process.
# In a session of pact shell it shows your own open changes; elsewhere how many are open on this node.
# Put it into ~/.config/fish/conf.d, or /usr/share/fish/vendor_conf.d.

function __pact_prompt
    set -l file /run/pact/state
    set -q PACT_PROMPT; and set file $PACT_PROMPT
    test -r $file; or return 0
    read -l state magnitude changes ends <$file 2>/dev/null; or return 0
    string match -qr '^[0-9]+$' -- $ends; and string match -qr '^[a-z0-9.,-]+$' -- $changes; or return 0
    string match -qr '^[a-z_]+$' -- $state; or return 0
    if test $changes = -; and not contains $state emergency blocked failed
        return 0
    end
    set -l text $state
    test $changes != -; and test $state = drifted; and set text $changes
    test $changes != -; and test $state != drifted; and set text "$state $changes"
    set -l color normal
    if test $ends -gt 0
        # fish has no clock of its own: a file's age and the time of its last change make one.
        set -l now (math (path mtime -- $file) + (path mtime -R -- $file))
        set -l left (math "max 0, $ends - $now")
        set color yellow
        test $left -le 120; and set color red
        if test $left -lt 120
            set text "$text $left"s
        else if test $left -lt 7200
            set text "$text "(math -s0 $left / 60)m
        else if test $left -lt 172800
            set text "$text "(math -s0 $left / 3600)h
        else
            set text "$text "(math -s0 $left / 86400)d
        end
    end
    set_color $color
    printf '[pact %s]' $text
    set_color normal
    printf ' '
end

if status is-interactive; and not functions -q __pact_prompt_before
    functions -q fish_prompt; and functions -c fish_prompt __pact_prompt_before; or function __pact_prompt_before
        printf '> '
    end
    function __pact_status
        return $argv[1]
    end
    function fish_prompt
        set -l code $status
        __pact_prompt
        __pact_status $code # the prompt may show it
        __pact_prompt_before
    end
end
