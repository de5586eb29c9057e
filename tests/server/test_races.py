"""Instances on a Chroma server while another process deletes: nothing is passed over, and what is deleted stays so."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.engine.server import listing
from chroma_server import ChromaServer, grudging
from conftest import new_collection


class ChangingList:
    """A list that others change before each page that is asked for, until they leave it alone."""

    def __init__(self, seed: int) -> None:
        self._chosen = random.Random(seed)
        self._present = self._new(30)
        self._changes = self._chosen.randrange(20)
        # A server may return fewer than it is asked for.
        self._longest_page = self._chosen.randrange(2, 6)
        self.always, self.ever = set(self._present), set(self._present)

    def ask(self, page: Mapping[str, int]) -> list[dict[str, float]]:
        if self._changes:
            self._changes -= 1
            kept = self._chosen.sample(sorted(self._present), self._chosen.randrange(len(self._present) + 1))
            self._present = {*kept, *self._new(6)}
            self.always &= self._present
            self.ever |= self._present
        end = page["offset"] + min(page["limit"], self._longest_page)
        return [{"id": item} for item in sorted(self._present)[page["offset"] : end]]

    def _new(self, bound: int) -> set[float]:
        return {self._chosen.random() for _ in range(self._chosen.randrange(bound))}


def test_a_list_has_all_that_is_in_it_all_the_time_whatever_happens_between_its_pages(monkeypatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 4)
    for seed in range(2000):
        changing = ChangingList(seed)
        found = [item["id"] for item in listing.read(changing.ask)]
        assert len(found) == len(set(found))
        assert changing.always <= set(found) <= changing.ever


@pytest.mark.parametrize("call", ["list", "count", "delete"])
def test_what_others_delete_meanwhile_hides_no_collection(chroma_server: ChromaServer, monkeypatch, call: str) -> None:
    monkeypatch.setattr(listing, "PAGE", 3)
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port, layout="collection") as manager:
        client = manager.get_client("doc", "azure")
        stock = chroma_server.client(client.tenant, "default_database")
        for i in range(9):
            stock.create_collection(f"other{i}", embedding_function=None)
        # In the server's order: the last one is on the last of the pages of three, whatever its id.
        *others, last = [found for found in stock.list_collections() if found.name.startswith("other")]
        last.modify(name="cm.doc.azure.last")

        def delete() -> None:
            for other in others[:4]:
                stock.delete_collection(other.name)

        proxy.meanwhile[:] = [("GET collections", do) for do in (bool, bool, delete)]
        if call == "list":
            assert [found.name for found in client.list_collections()] == ["last"]
        elif call == "count":
            assert client.count_collections() == 1
        else:
            assert manager.delete_instance("doc", "azure")
            assert sorted(found.name for found in stock.list_collections()) == sorted(it.name for it in others[4:])
        assert proxy.meanwhile == []


class Shared:
    """An instance in a shared database, and the names of all collections there."""

    def __init__(self, server: ChromaServer, manager: ChromaDBManager) -> None:
        new_collection(manager)
        self._stock = server.client(manager.get_client("doc", "azure").tenant, "default_database")

    def names(self) -> list[str]:
        return sorted(found.name for found in self._stock.list_collections())

    def create(self, *names: str) -> None:
        for name in names:
            self._stock.create_collection(name, embedding_function=None)


def test_what_is_created_in_an_instance_while_it_is_deleted_is_deleted_as_well(chroma_server: ChromaServer) -> None:
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port, layout="collection") as manager:
        shared = Shared(chroma_server, manager)
        proxy.meanwhile[:] = [("DELETE cm.doc.azure", lambda: shared.create("cm.doc.azure.late"))]
        assert manager.delete_instance("doc", "azure")
        assert (shared.names(), proxy.meanwhile) == ([], [])


def test_an_instance_that_is_created_anew_while_an_older_one_is_deleted_stays(chroma_server: ChromaServer) -> None:
    names = ["cm.doc.azure", "cm.doc.azure.new"]
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port, layout="collection") as manager:
        shared = Shared(chroma_server, manager)
        proxy.meanwhile[:] = [("DELETE cm.doc.azure", bool), ("GET collections", lambda: shared.create(*names))]
        assert manager.delete_instance("doc", "azure")
        assert (shared.names(), proxy.meanwhile) == (names, [])


def test_what_is_left_of_an_instance_is_deleted_with_its_file(chroma_server: ChromaServer) -> None:
    with chroma_server.manager(layout="collection") as manager:
        shared = Shared(chroma_server, manager)
        shared.create("cm.doc.left.one", "cm.doc.left.two", "cm.doc_.left.one", "cm.doc", "other.doc.left.one")
        assert [str(key) for key in manager._server.instances()] == ["doc/azure"]
        assert manager.delete_file("doc") == 2
        assert shared.names() == ["cm.doc", "cm.doc_.left.one", "other.doc.left.one"]
