"""Why a flow goes where it goes: `lb explain`."""
