"""The grammar as a policy of the API server: what kubectl apply refuses, in CEL. Pure.

`text` has the words in which a kind says how its rules are written, `value` makes CEL of them, and
`documents` the policy. All patterns are RE2's, as CEL has them.
"""
