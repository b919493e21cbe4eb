"""What the tasks' models share: edits of the suite's files, and the torso's angular momentum."""

from xml.etree import ElementTree

from dm_control.suite import common


def read(name):
    """Returns the root element of one of the suite's model files."""
    return ElementTree.fromstring(common.read_model(name))


def edited(name, **geoms):
    """Returns one of the suite's models with other attributes of some geoms.

    Args:
        name: File in the suite's folder, such as `cheetah.xml`.
        **geoms: Attributes by geom name.

    Returns:
        The model as an XML string.
    """
    root = read(name)
    for geom, attributes in geoms.items():
        root.find(f".//geom[@name='{geom}']").attrib.update(attributes)
    return ElementTree.tostring(root)


class AngularMomentum:
    """For a planar body with a `torso`; goes before the suite's physics."""

    def angular_momentum(self):
        """Returns the torso's subtree's angular momentum about the y axis (kg m^2/s)."""
        return self.named.data.subtree_angmom['torso'][1]
