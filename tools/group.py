# SPDX-License-Identifier: Apache-2.0
"""The groups of commands."""

from __future__ import annotations

import click


class NamedGroup(click.Group):
    """A group that names the nearest command for an unknown one, and the place of an option that comes too early."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            option = error.option_name
            for name in words:
                command = self.get_command(ctx, name) if name in self.list_commands(ctx) else None
                if command is not None and any(option in parameter.opts for parameter in command.params):
                    place = f"{ctx.command_path} {name} {option}"
                    raise click.UsageError(
                        f"{option} is an option of {name}, and goes after it: {place}", ctx
                    ) from None
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            import difflib

            if near := difflib.get_close_matches(args[0], self.list_commands(ctx), n=1):
                raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx) from None
            raise
